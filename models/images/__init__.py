"""What a photo is, before there is a net: hostile files, decoding, preparation. No torch."""
