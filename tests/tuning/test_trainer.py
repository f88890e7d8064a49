"""Adapters of a bank: losses by their formulas, gradients by finite differences, many side by side as each alone."""
