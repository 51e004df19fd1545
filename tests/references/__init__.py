"""What MMSegmentation 1.2.2 computes with tiny networks, so that ours can be compared with it.

`NAME.keys.txt` lists a network's tensors, from which `key_weights` rebuilds them bit for bit;
`NAME.ref.pt` holds its logits. Made with that library itself; no trained weights of anyone.
"""
