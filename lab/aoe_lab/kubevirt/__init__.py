"""KubeVirt in a lab: its images, its installation by its own virt-operator, and virtual machines on it."""
