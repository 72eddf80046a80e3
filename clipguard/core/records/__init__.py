"""The records that result files hold, typed."""
