#!/bin/bash
# First process of a container: sets up CANN, looks whether the container was started as training
# needs it, then becomes the command. What is missing is said in one line with the option of
# `docker run` that brings it (docker/*/compose.yaml has them all).
set -euo pipefail

refuse() {
    echo "loopmoe container: $1 -> $2" >&2
    exit 2
}

# These scripts use variables that are not set, and must not get our arguments.
source_if_there() {
    local script=$1
    if [[ -r $script ]]; then
        set +eu
        # shellcheck disable=SC1090
        source "$script" --cxx_abi=1
        set -eu
    fi
}
source_if_there /usr/local/Ascend/ascend-toolkit/set_env.sh
source_if_there /usr/local/Ascend/nnal/atb/set_env.sh

# Ranks of one node exchange through shared memory; Docker's default is 64 MiB.
shm_mib=$(df --block-size=1M --output=size /dev/shm 2>/dev/null | tail -n 1 | tr -d ' ' || echo 0)
if ((shm_mib < 1024)); then
    echo "loopmoe container: /dev/shm has ${shm_mib} MiB -> docker run --shm-size=16g" >&2
fi

if [[ ${LOOPMOE_IMAGE:-} == ascend-* && ${LOOPMOE_DEVICE:-npu} == npu ]]; then
    devices=(/dev/davinci[0-9]*)
    [[ -e ${devices[0]} ]] ||
        refuse "no NPU is visible (/dev/davinci0 ...)" \
            "docker run --device=/dev/davinci0 ..., or set LOOPMOE_DEVICE=cpu to go without"
    for device in "${devices[@]}" /dev/davinci_manager /dev/devmm_svm /dev/hisi_hdc; do
        [[ -e $device ]] || refuse "$device is missing" "docker run --device=$device"
        [[ -r $device && -w $device ]] ||
            refuse "user $(id -u) may not use $device" \
                "docker run --group-add $(stat --format=%g "$device")"
    done
    [[ -d /usr/local/Ascend/driver/lib64 ]] ||
        refuse "the driver of the host is not mounted" \
            "docker run --volume=/usr/local/Ascend/driver:/usr/local/Ascend/driver:ro"
    command -v npu-smi >/dev/null ||
        echo "loopmoe container: no npu-smi, loopmoe doctor cannot ask the driver ->" \
            "docker run --volume=/usr/local/bin/npu-smi:/usr/local/bin/npu-smi:ro" >&2
fi

exec "$@"
