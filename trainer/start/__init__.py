"""Where training starts: pretrained weights or a bundle, in order of importance, into a supernet."""
