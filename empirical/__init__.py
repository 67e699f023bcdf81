"""Real networks on real data, measured on train and test, at every layer, over training."""
