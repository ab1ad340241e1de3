def learning_curve(h,p): pass
def routing(*a): pass
