"""Tiny annotators with random weights, built from configs of transformers and saved, so that they are loaded like any other."""

import torch
from transformers import (
    ConvNextConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SamConfig,
    SamImageProcessor,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

SIZE = {"height": 56, "width": 56}
ADE = {number: f"class {number}" for number in range(150)}
LABELS = {"id2label": ADE, "label2id": {name: number for number, name in ADE.items()}}


def _saved(folder, model, processor):
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def depth_anything(folder, **options):
    torch.manual_seed(11)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    backbone = Dinov2Config(**shape, out_features=stages, reshape_hidden_states=False)
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        patch_size=14,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        **options,
    )
    processor = DPTImageProcessor(size=SIZE, keep_aspect_ratio=True, ensure_multiple_of=14, do_pad=False)
    return _saved(folder, DepthAnythingForDepthEstimation(config), processor)


def dpt(folder):
    torch.manual_seed(12)
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
    )
    return _saved(folder, DPTForDepthEstimation(config), DPTImageProcessor(size={"height": 64, "width": 64}))


def segformer(folder, labels=LABELS, **options):
    torch.manual_seed(13)
    shape = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    config = SegformerConfig(**shape, decoder_hidden_size=16, initializer_range=0.5, **labels, **options)
    return _saved(folder, SegformerForSemanticSegmentation(config), SegformerImageProcessor(size={"height": 64, "width": 64}))


def upernet(folder):
    torch.manual_seed(14)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=stages)
    config = UperNetConfig(backbone_config=backbone, hidden_size=8, use_auxiliary_head=False, initializer_range=0.5, **LABELS)
    model = UperNetForSemanticSegmentation(config)
    return _saved(folder, model, SegformerImageProcessor(size={"height": 64, "width": 64}))


def mask2former(folder):
    torch.manual_seed(15)
    backbone = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=12,
        init_std=1.0,
        init_xavier_std=3.0,
        **LABELS,
    )
    processor = Mask2FormerImageProcessor(size={"height": 64, "width": 64})
    return _saved(folder, Mask2FormerForUniversalSegmentation(config), processor)


def detector(folder):
    torch.manual_seed(16)
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 64],
        patch_size=16,
        num_detection_tokens=6,
        initializer_range=0.5,
        id2label={0: "N/A", 1: "person", 2: "bicycle"},
        label2id={"N/A": 0, "person": 1, "bicycle": 2},
    )
    processor = YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 80})
    model = YolosForObjectDetection(config)
    model.class_labels_classifier.layers[-1].bias.data[1] += 4  # most of what it sees are persons, each in another box
    model.bbox_predictor.layers[-1].weight.data *= 0.05
    model.vit.embeddings.detection_tokens.data.normal_()
    return _saved(folder, model, processor)


def vitpose(folder, experts=1):
    torch.manual_seed(17)
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48],
        patch_size=[16, 16],
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        num_experts=experts,
        part_features=8 if experts > 1 else 0,
        out_indices=[2],
    )
    joints = {number: f"joint {number}" for number in range(17)}
    labels = {"id2label": joints, "label2id": {name: number for number, name in joints.items()}}
    config = VitPoseConfig(backbone_config=backbone, initializer_range=0.5, use_simple_decoder=True, scale_factor=4, **labels)
    return _saved(folder, VitPoseForPoseEstimation(config), VitPoseImageProcessor(size={"height": 64, "width": 48}))


def sam(folder):
    """A model that finds dozens of segments, of which some are unsure and some unsteady."""
    torch.manual_seed(0)
    shape = {"image_size": 64, "patch_size": 8}
    few = {"num_attention_heads": 2, "mlp_dim": 16}
    vision = SamVisionConfig(
        hidden_size=16,
        output_channels=16,
        num_hidden_layers=1,
        window_size=4,
        global_attn_indexes=[0],
        num_pos_feats=8,
        initializer_range=1.0,
        **shape,
        **few,
    )
    prompts = SamPromptEncoderConfig(hidden_size=16, mask_input_channels=4, **shape)
    decoder = SamMaskDecoderConfig(hidden_size=16, num_hidden_layers=2, iou_head_depth=2, iou_head_hidden_dim=16, **few)
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder, initializer_range=1.0)
    model = SamModel(config)
    model.shared_image_embedding.positional_embedding.data.normal_()
    head = model.mask_decoder.iou_prediction_head.proj_out
    head.weight.data *= 0.05
    head.bias.data += 0.9
    processor = SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    return _saved(folder, model, processor)
