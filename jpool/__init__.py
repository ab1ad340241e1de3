from jpool.pooling import max_pool
