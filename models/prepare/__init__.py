"""Downloads of public data sets are checked, and what the commands take is made from them."""
