"""Attribution methods, one file per method or small family: a classifier, inputs and targets -> maps."""
