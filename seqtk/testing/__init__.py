"""The laws, which are tests of attention layers: of seqtk's own layers and of layers in plug-ins."""
