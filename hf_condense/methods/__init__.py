"""The methods, one file each. `hf_condense.registry` lists them."""
