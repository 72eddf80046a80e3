"""Adapters of peft (LoRA): small matrices beside a base model, merged into its weights."""
