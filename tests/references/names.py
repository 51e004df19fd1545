"""MMSegmentation's names of its ViT, Swin, HRNet and U-Net, and of the heads above them -> ours."""

UPERNET = {
    r"^decode_head\.psp_modules\.": "decoder.pooling.pools.",
    r"^decode_head\.bottleneck\.": "decoder.pooling.bottleneck.",
    r"^decode_head\.lateral_convs\.": "decoder.laterals.",
    r"^decode_head\.fpn_convs\.": "decoder.convs.",
    r"^decode_head\.fpn_bottleneck\.": "decoder.bottleneck.",
}
FCN = {r"^decode_head\.convs\.": "decoder.convs."}
VIT = {
    r"^encoder\.model\.patch_embed\.projection\.": "encoder.model.patch_embed.proj.",
    r"^encoder\.model\.ln1\.": "encoder.model.norm.",
    r"^encoder\.model\.layers\.": "encoder.model.blocks.",
    r"\.ln([12])\.": r".norm\1.",
    r"\.attn\.attn\.in_proj_": ".attn.qkv.",
    r"\.attn\.attn\.out_proj\.": ".attn.proj.",
    r"\.ffn\.layers\.0\.0\.": ".mlp.fc1.",
    r"\.ffn\.layers\.1\.": ".mlp.fc2.",
    r"^neck\.(\w+)\.(\d)\.conv\.": r"encoder.pyramid.\1.\2.",
}
SWIN = {
    r"^encoder\.model\.patch_embed\.projection\.": "encoder.model.patch_embed.proj.",
    r"^encoder\.model\.norm(\d)\.": r"encoder.norms.\1.",
    # the downsampling that ends a stage there begins the next one in timm
    r"^encoder\.model\.stages\.0\.downsample\.": "encoder.model.layers.1.downsample.",
    r"^encoder\.model\.stages\.1\.downsample\.": "encoder.model.layers.2.downsample.",
    r"^encoder\.model\.stages\.2\.downsample\.": "encoder.model.layers.3.downsample.",
    r"^encoder\.model\.stages\.": "encoder.model.layers.",
    r"\.attn\.w_msa\.": ".attn.",
    r"\.ffn\.layers\.0\.0\.": ".mlp.fc1.",
    r"\.ffn\.layers\.1\.": ".mlp.fc2.",
}
UNET = {
    r"^encoder\.model\.encoder\.(\d)\.\d\.": r"encoder.model.stages.\1.",
    r"^(encoder\.model\.stages\.\d)\.convs\.0\.conv\.": r"\1.conv1.",
    r"^(encoder\.model\.stages\.\d)\.convs\.1\.conv\.": r"\1.conv2.",
    r"^(encoder\.model\.stages\.\d)\.convs\.0\.bn\.": r"\1.norm1.",
    r"^(encoder\.model\.stages\.\d)\.convs\.1\.bn\.": r"\1.norm2.",
    # the blocks are counted from the shallowest there, from the deepest here
    r"^encoder\.model\.decoder\.0\.": "decoder.block.3.",
    r"^encoder\.model\.decoder\.1\.": "decoder.block.2.",
    r"^encoder\.model\.decoder\.2\.": "decoder.block.1.",
    r"^encoder\.model\.decoder\.3\.": "decoder.block.0.",
    r"^decoder\.block\.(\d)\.upsample\.interp_upsample\.1\.": r"decoder.ups.\1.",
    r"^decoder\.block\.(\d)\.conv_block\.convs\.0\.conv\.": r"decoder.blocks.\1.conv1.0.",
    r"^decoder\.block\.(\d)\.conv_block\.convs\.0\.bn\.": r"decoder.blocks.\1.conv1.1.",
    r"^decoder\.block\.(\d)\.conv_block\.convs\.1\.conv\.": r"decoder.blocks.\1.conv2.0.",
    r"^decoder\.block\.(\d)\.conv_block\.convs\.1\.bn\.": r"decoder.blocks.\1.conv2.1.",
}
