"""The methods, one file each. `hf_condense.engine.registry` lists them."""
