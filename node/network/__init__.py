"""How nodes talk to each other: hints to everybody (gossip) and questions to one peer (requests).

`transport` is the interface that the rest of the node knows; `libp2p_transport` is the real network and
`simulated_transport` the one inside a test. `peers` decides whom to call again and when, and whom to ignore
for a while; `peer_ids` is the text form of a peer's public key. Nothing here knows what the messages mean.
"""
