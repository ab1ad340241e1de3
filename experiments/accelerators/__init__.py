"""Programs compiled for GPUs and TPUs on a machine without either: compilers, programs, and figures read from them."""
