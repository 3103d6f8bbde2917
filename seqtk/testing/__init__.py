"""Tests of the interface of attention layers, for seqtk's layers and for layers of plug-ins."""
