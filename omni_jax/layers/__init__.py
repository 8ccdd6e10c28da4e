"""Building blocks that know no model. Numerics are plain functions; modules are thin around them."""
