#!/bin/sh
# Entry point of the image: its arguments are those of recmtl, or a whole command as TorchX gives it on local_docker.

# In a container whose files are read-only, /dev/shm alone can be written beside the mounts.
[ -w /tmp ] || export TMPDIR=/dev/shm MPLCONFIGDIR=/dev/shm/matplotlib

case "${1:-}" in
bash | python) exec "$@" ;;
*) exec recmtl "$@" ;;
esac
