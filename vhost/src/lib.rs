//! vhost-user network devices: pods and virtual machines that are attached by shared memory.
