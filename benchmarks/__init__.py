"""Measurements behind the numbers that this project promises. Linux only; each module runs by itself."""
