"""`clipguard certify`: randomised smoothing, the radius around each image in which no attack can change the class."""
