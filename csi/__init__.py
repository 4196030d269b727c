"""The kubelet's side of podsvid: registration, CSI Identity and Node services, the volume, the journal."""
