"""Defences at test time: what stands around a classifier, and what an attacker needs to know of it."""
