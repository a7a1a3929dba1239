"""Pseudo masks as a product: a folder of them in the formats of training libraries and annotation tools.

A mask is semantic: one region a class and photo. All formats are in the upright frame, as the masks are. Free of torch.
"""
