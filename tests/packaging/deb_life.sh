#!/usr/bin/env bash
# The life of the Debian package, in a namespace of mounts and processes of its own: install, run, upgrade, remove.
# Arguments: the folder to work in, the package, the package of a later version, an image as a tar.
set -euo pipefail
work=$1 package=$2 later=$3 image=$4

mount --make-rprivate /
mount -t tmpfs tmpfs "$work"
mkdir -p "$work"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
root=$work/root
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
for folder in run tmp var/lib/moored; do
    mkdir -p "$root/$folder"
    mount -t tmpfs tmpfs "$root/$folder"
done
mkdir -p "$root/run/lock" "$root/tmp/packages"
cp "$package" "$root/tmp/packages/first.deb"
cp "$later" "$root/tmp/packages/later.deb"
cp "$image" "$root/tmp/image.tar"

inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C "$@"; }
client() { inside ctr -a /run/moored/moored.sock "$@"; }
start() {
    chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root moored > "$root/tmp/moored.log" 2>&1 &
    daemon=$!
    for _ in $(seq 100); do
        if client version > /dev/null 2>&1; then return; fi
        sleep 0.1
    done
    cat "$root/tmp/moored.log"
    exit 1
}

inside dpkg -i /tmp/packages/first.deb > /dev/null
echo "installed: $(inside dpkg-query -W -f '${Status} ${Version}' moored)"
inside moored config check
start
echo "moorctl: $(inside moorctl version)"
client images import /tmp/image.tar > /dev/null
client run -d docker.io/test/busybox:latest kept sleep 1000
before=$(client task ls -q)
pid=$(client task ls | awk '$1 == "kept" {print $2}')

echo "# changed by the operator" >> "$root/etc/moored/config.toml"
inside dpkg -i --force-confold /tmp/packages/later.deb > /dev/null
echo "upgraded: $(inside dpkg-query -W -f '${Version}' moored)"
kill "$daemon" && wait "$daemon"
start
echo "kept: $before, running: $([ -d "$root/proc/$pid" ] && client task ls | awk -v pid="$pid" '$2 == pid {print $1, $3}')"
echo "exec: $(client task exec --exec-id e kept echo still here)"
grep -q "changed by the operator" "$root/etc/moored/config.toml" && echo "config kept"

client task kill -s 9 kept
for _ in $(seq 50); do
    if client task rm kept > /dev/null 2>&1; then break; fi
    sleep 0.1
done
client containers rm kept
kill "$daemon" && wait "$daemon"
inside dpkg -r moored > /dev/null 2>&1
echo "removed: $(ls "$root/usr/bin/moored" "$root/usr/lib/moored" "$root/lib/systemd/system/moored.service" 2>/dev/null | wc -l)"
echo "state kept: $(ls "$root/var/lib/moored" | grep -c content)"

inside dpkg -P moored > /dev/null 2>&1
echo "purged: $(find "$root/etc/moored" "$root/var/lib/moored" -mindepth 1 2>/dev/null | wc -l)"
