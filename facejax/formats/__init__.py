"""Files from elsewhere, which may be damaged or made to mislead: limits, MATLAB, pickles of arrays, .npy and HDF5."""
