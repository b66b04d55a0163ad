"""What travels inside every registered model: no torch, and nothing of ours outside of this folder."""
