"""Is the robustness real? Checks, probes and the doctor."""
