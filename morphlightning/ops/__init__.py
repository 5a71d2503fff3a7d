"""What computes the public operators: geometries, kernels and backends behind one dispatcher (private)."""
