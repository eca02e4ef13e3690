"""A tiny real guest made from Debian packages: kernel, busybox, guest agent; boots in seconds.

`image.build` makes kernel and initramfs once, `disk` makes disks without root or loop devices, and
`vm.Guest` runs it all under QEMU.
"""
