"""Self-refine Instruction-tuning on Ray."""
