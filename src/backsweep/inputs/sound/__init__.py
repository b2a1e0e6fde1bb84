"""Sounds: waveforms in [-1, 1] at a sample rate; their triggers live in time and frequency."""
