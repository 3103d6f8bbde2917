"""Tests of the contract of attention layers, for seqtk's own layers and for those of plug-ins."""
