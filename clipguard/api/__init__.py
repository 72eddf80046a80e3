"""The Python API: what `import clipguard` offers."""
