"""Mixture of experts per visit: router with statistics, grouped experts, the layer."""
