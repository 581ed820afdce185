"""What a set is worth: networks trained on it and on baselines, tested on real images."""
