"""Official protocols run on a trained network, with their figures: network and data in, `Report` out."""
