#!/bin/sh
# Entry point of the image: its arguments are those of recmtl, or a whole command as TorchX gives it on local_docker.
case "${1:-}" in
bash | python) exec "$@" ;;
*) exec recmtl "$@" ;;
esac
