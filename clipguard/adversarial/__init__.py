"""`clipguard attack`: adversarial images made, kept and made again."""
