SELECT token FROM keylane_fence WHERE resource = $1
