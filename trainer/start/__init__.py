"""Where training starts: pretrained weights or a bundle, the most important channels first."""
