"""Clustering of embeddings."""
