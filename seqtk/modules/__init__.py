"""Layers that are not attention: embeddings, feed-forward, blocks, output heads."""
