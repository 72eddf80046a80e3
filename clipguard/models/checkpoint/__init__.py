"""Files of weights in any layout, read without running code from them."""
