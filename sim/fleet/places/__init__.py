"""Sites far apart: hops, meshes, estimates."""
