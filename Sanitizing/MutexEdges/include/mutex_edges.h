// Nothing to call: linking MutexEdges is enough (see mutex_edges.c).
