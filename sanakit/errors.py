"""Errors that say what was found, what was expected and how to mend it.

`CODES` is the catalogue behind `sanakit explain CODE`; gates carry codes of the same catalogue.
"""

import errno
import re
from dataclasses import dataclass


class ExitCode:
    """Process exit codes, a public interface."""

    PASSED = 0
    GATE_FAILED = 1
    USAGE = 2
    ENVIRONMENT = 3
    INCONCLUSIVE = 4
    ERROR = 5  # an error of sanakit itself or of a plugin: never a verdict


@dataclass(frozen=True, kw_only=True)
class Code:
    title: str
    why: str
    fix: str
    exit_code: int = ExitCode.USAGE


CODES: dict[str, Code] = {
    # 01: usage and configuration
    "SK0101": Code(
        title="unknown name",
        why="No registered component, dataset or strategy has this name.",
        fix="`sanakit ls` lists every name; a component on disk is `path:DIR`, on the hub `hub:owner/repo`.",
    ),
    "SK0102": Code(
        title="a name is registered twice",
        why="Two installed packages (or a package and sanakit itself) claim the same name.",
        fix="Uninstall one of the distributions that the message names, or rename its entry point.",
    ),
    "SK0103": Code(
        title="a plugin cannot be imported",
        why="The entry point names a module or class that fails to import.",
        fix="Import it by hand to see the whole traceback, then mend or uninstall the plugin.",
        exit_code=ExitCode.ERROR,
    ),
    "SK0104": Code(
        title="configuration refused",
        why="A key is unknown, or its value is outside what the option means.",
        fix="`sanakit train --preset NAME --dry-run` prints every key with its value.",
    ),
    "SK0105": Code(
        title="run folder belongs to another configuration",
        why="The folder holds results of a different base, candidate, data set or seed; mixing them would be silent.",
        fix="Name another --run-dir, or leave it out and let sanakit make one.",
    ),
    "SK0106": Code(
        title="not a component that sanakit can load",
        why="The folder has no config.json, or its class is not on the allowlist of VAEs and text encoders.",
        fix="Point `path:` at a `save_pretrained` folder of a diffusers VAE or a transformers encoder.",
    ),
    "SK0107": Code(
        title="config and weights disagree",
        why="The weights hold tensors of other names or shapes than the config builds; loading would leave "
        "random weights in place.",
        fix="Fetch config and weights of the same revision.",
    ),
    "SK0108": Code(
        title="unknown code",
        why="`sanakit explain` knows the codes of errors and gates only.",
        fix="Copy the code from the message, for example SK0203.",
    ),
    "SK0109": Code(
        title="nothing to report on",
        why="The folder is not a sanakit run: it holds no validation.json, or a file that a run does not write so.",
        fix="Name a folder under runs/, or run `sanakit swap-vae` first.",
    ),
    "SK0110": Code(
        title="the swap cannot be built",
        why="The candidate's token grid does not fit the core at this image size.",
        fix="Choose an image size that the candidate's ratio times the core's patch size divides.",
    ),
    "SK0111": Code(
        title="no safetensors weights",
        why="Pickle files (.bin, .pt, .pth, .ckpt) can run code when they are read, so only safetensors are loaded.",
        fix="Take a repository or revision with *.safetensors, or convert the weights once where you trust them: "
        "load them there and call `save_pretrained`.",
    ),
    "SK0112": Code(
        title="the repository wants to run its own code",
        why="The class lives in the repository (`auto_map`, trust_remote_code); sanakit never runs downloaded code.",
        fix="Use a class of diffusers or transformers, or write a plugin around code that you have read: "
        "docs/adding-a-component.md.",
    ),
    "SK0113": Code(
        title="policy refused",
        why="A policy names gates and numbers; a misspelt one would silently keep the default.",
        fix="`--policy default`, `--policy strict`, or a YAML file `thresholds: {GATE: number}` with names of "
        "`sanakit ls gates`; `allowed_loss` takes the measures of docs/decision.md.",
    ),
    "SK0114": Code(
        title="a plugin raised an error",
        why="A gate, statistic, strategy, metric, data set or component of an installed plugin raised an error while "
        "it measured or evaluated. It could not be evaluated; everything else was measured.",
        fix="Report it to the plugin's authors with the traceback file that the message names, or uninstall the "
        "plugin.",
        exit_code=ExitCode.ERROR,
    ),
    "SK0115": Code(
        title="a component breaks its contract",
        why="A check of sanakit.testing found that the component does not do what sanakit relies on.",
        fix="docs/adding-a-component.md has the contract of every kind.",
    ),
    "SK0116": Code(
        title="the new plugin cannot be written",
        why="Its name is no name of a package, is taken, or the folder exists already.",
        fix="Take a name of small letters, digits and single hyphens, such as ours-f8c4, and --out with a new folder.",
    ),
    "SK0119": Code(
        title="not enough memory",
        why="The machine or the GPU has less memory than this run needs.",
        fix="Lower train.batch_size, raise train.accumulate, or set train.gradient_checkpointing; "
        "`sanakit train --preset NAME --dry-run --world-size 1` prints what a run needs.",
        exit_code=ExitCode.ENVIRONMENT,
    ),
    "SK0120": Code(
        title="quantised weights",
        why="The weights are quantised (GPTQ, AWQ, torchao, FP8 ...): they need a package and often a device of their "
        "own, and a component is frozen, compared and exported in floating point. Read is what bitsandbytes made of a "
        "text encoder.",
        fix="Take the repository with the weights in bf16, fp16 or fp32, or dequantise them and call "
        "`save_pretrained`.",
    ),
    "SK0121": Code(
        title="a Git LFS pointer in the place of a file",
        why="The repository was cloned without Git LFS, so large files are pointers of about 130 bytes.",
        fix="Run `git lfs pull` in the repository, or fetch it with `hf download owner/repo`.",
    ),
    "SK0122": Code(
        title="weight files are missing, cut short or damaged",
        why="A download or a copy did not finish: a shard is absent, or a file ends before its header says.",
        fix="Fetch the named file again; `hf download owner/repo --local-dir DIR` goes on where it stopped.",
    ),
    "SK0123": Code(
        title="weights of several models",
        why="The tensors of this component lie under more than one prefix (a model and its average, for instance), and "
        "nothing says which one is meant.",
        fix="Keep one of them: load the file, keep the tensors of one prefix, and save them again.",
    ),
    "SK0124": Code(
        title="a whole pipeline where one component is expected",
        why="The folder holds several components in subfolders; a candidate is one of them.",
        fix="Name the subfolder: `path:DIR/vae`, `path:DIR/text_encoder`, on the hub `hub:owner/repo:vae`.",
    ),
    "SK0125": Code(
        title="a low-rank adapter is not merged",
        why="The folder holds a PEFT or LoRA adapter: alone it is no model, and beside the weights it is ambiguous "
        "whether it belongs to the component.",
        fix="Merge it into the weights with peft's `merge_and_unload`, call `save_pretrained`, and name that folder.",
    ),
    "SK0126": Code(
        title="tokenizer and text encoder do not fit",
        why="There is no tokenizer that loads, it has no vocabulary, or it has tokens for which the model's embedding "
        "has no row: a prompt with one of them cannot be read.",
        fix="Use the tokenizer that was saved with the model; after adding tokens call "
        "`resize_token_embeddings(len(tokenizer))` and save both.",
    ),
    "SK0127": Code(
        title="a normalisation that cannot be applied",
        why="Latents are divided by the std: each must be a finite number above zero, and so must the scaling factor.",
        fix="Correct latents_mean, latents_std or scaling_factor in the config; stage component measures them.",
    ),
    "SK0128": Code(
        title="the cache folder cannot be written",
        why="SANAKIT_CACHE, or the user's cache folder, cannot be made or is not writable.",
        fix="export SANAKIT_CACHE=DIR, with a folder that you may write.",
        exit_code=ExitCode.ENVIRONMENT,
    ),
    "SK0129": Code(
        title="the config states the normalisation in more than one way",
        why="latents_mean with latents_std, and scaling_factor with shift_factor, are two statements of the same "
        "thing; one of them is not used.",
        fix="Remove the statement that does not hold from the config; `--set vae.scaling_factor=VALUE` overrides "
        "the std.",
    ),
    "SK0131": Code(
        title="the run folder is in use",
        why="Another process trains or evaluates in this folder; two would overwrite each other's files.",
        fix="Wait for that process, end it, or name another --run-dir. A process that was killed holds no lock.",
    ),
    # 02: latents and VAEs
    "SK0201": Code(
        title="reconstruction is worse than the floor",
        why="The candidate cannot give its own input back; nothing trained on its latents can be better.",
        fix="Check the input range ([-1, 1]), the weights, and that encoder and decoder belong together.",
    ),
    "SK0202": Code(
        title="declared geometry is not the measured one",
        why="The VAE's latents have another shape than its record says, so every token grid would be wrong.",
        fix="Correct `latent_channels` or `spatial_compression_ratio` in the record.",
    ),
    "SK0203": Code(
        title="latents have the wrong scale",
        why="Flow matching mixes latents with unit noise; a wrong scaling or shift moves every sigma.",
        fix="--set vae.scaling_factor=VALUE with 1/std of the raw latents, or declare mean and std.",
    ),
    "SK0204": Code(
        title="non-finite latents",
        why="The VAE overflows on these images, most often in half precision.",
        fix="Use weights saved in fp32, or weights made for half precision (for SDXL: `sdxl-vae-fp16-fix`).",
    ),
    "SK0205": Code(
        title="dead latent channels",
        why="A channel hardly varies over images; normalising it would blow up rounding noise.",
        fix="Use a VAE trained to use its channels, or drop the channel.",
    ),
    "SK0206": Code(
        title="latents drift from the reference",
        why="The distribution of latents is not the one that the reference recorded: data or preprocessing changed.",
        fix="Compare the fingerprints of both sides; re-encode with the reference's preprocessing.",
    ),
    "SK0207": Code(
        title="a trained reference is missing",
        why="The base or the reference has no recorded statistics to compare with.",
        fix="Encode the base first: `sanakit encode --vae BASE --data D --out DIR`.",
    ),
    "SK0208": Code(
        title="the config states no scaling",
        why="Without scaling_factor or mean and std nobody knows how wide the latents are; the library's default is a "
        "guess, so raw latents are taken as they are.",
        fix="Stage component measures 1/std and names it: --set vae.scaling_factor=VALUE.",
    ),
    "SK0209": Code(
        title="latents are off centre",
        why="The channels have means that the record does not subtract: the shift is missing, or is another VAE's.",
        fix="Declare shift_factor, or mean and std per channel, as the VAE's config states them.",
    ),
    "SK0210": Code(
        title="the VAE expects another input range",
        why="Images come back stretched or squeezed: [0, 1] went into a VAE of [-1, 1], or the other way round.",
        fix="Feed images in [-1, 1], and map the decoder's output back the same way.",
    ),
    "SK0211": Code(
        title="colour channels are in another order",
        why="Reconstructions fit the images better with their channels exchanged: one side reads BGR.",
        fix="Convert to RGB where images are read (OpenCV gives BGR).",
    ),
    "SK0212": Code(
        title="images are turned or mirrored",
        why="Reconstructions fit the images better turned or mirrored: EXIF rotation, or height and width in "
        "another order.",
        fix="Apply EXIF rotation when reading, and keep (B, C, H, W) everywhere.",
    ),
    "SK0213": Code(
        title="seams between tiles",
        why="The error jumps at few borders of the latent grid: the VAE works tile by tile without blending, or its "
        "decoder is not trained enough to join its patches.",
        fix="Turn tiling off at this size, or blend overlapping tiles; where the VAE does not tile, train its "
        "decoder longer.",
    ),
    "SK0214": Code(
        title="the latents have collapsed",
        why="The channels repeat one another: nearly all of their variance lies in few directions, so the loss is "
        "easy and the images are lost.",
        fix="Where images do not come back, load trained weights or train the VAE longer, and never train an adapter "
        "before the noising; where they do, take a VAE with fewer channels or with channels that differ.",
    ),
    "SK0215": Code(
        title="normalising cannot be undone",
        why="Denormalised latents are not the raw ones, so what is decoded is not what was trained on.",
        fix="Use one mean and std for both directions; a pipeline that knows scaling_factor only drops the shift.",
    ),
    "SK0216": Code(
        title="latents differ from one encoding to the next",
        why="The posterior is sampled, or the model is in training mode, so cached and fresh latents are not the same.",
        fix="Take the posterior's mode, and call eval().",
    ),
    "SK0217": Code(
        title="images are not in [-1, 1]",
        why="A VAE reads floating point values from -1 (black) to 1 (white); bytes from 0 to 255, or values that are "
        "not finite, give latents of another scale.",
        fix="For bytes: images.float() / 127.5 - 1; for [0, 1]: images * 2 - 1; clamp what resizing put outside.",
    ),
    "SK0218": Code(
        title="a latent translation explains too little",
        why="A linear map of the cached latents leaves out more of the other VAE's latents than allowed: what a core "
        "learns from them, it would have to unlearn.",
        fix="Encode the images again with `sanakit encode`, or lower --min-explained where a rough start is enough.",
        exit_code=ExitCode.GATE_FAILED,
    ),
    "SK0219": Code(
        title="two latent grids have no places in common",
        why="Latents of one VAE can be translated where one spatial compression ratio divides the other.",
        fix="Encode the images again with `sanakit encode`.",
    ),
    "SK0220": Code(
        title="the encoder is not the one that was kept",
        why="latents.json beside a VAE says that its latents are those of an earlier one, but the encoder's weights "
        "are others: the statement is not used, and caches of the earlier VAE do not serve.",
        fix="Delete latents.json, or copy the whole folder that decoder training wrote.",
    ),
    # 03: text
    "SK0301": Code(
        title="non-finite or constant embeddings",
        why="The text encoder returns NaN, Inf, or the same vector for every prompt.",
        fix="Check precision and that the base model class (not CausalLM) is loaded.",
    ),
    "SK0302": Code(
        title="prompts cannot be told apart",
        why="Different prompts have nearly equal embeddings, so the core cannot follow the prompt.",
        fix="Check pooling, padding side and the chosen layer.",
    ),
    "SK0303": Code(
        title="padding changes the embedding",
        why="The embedding of a prompt depends on how much padding follows it: the mask is ignored.",
        fix="Pass the attention mask to the encoder and select real tokens only.",
    ),
    "SK0304": Code(
        title="prompts are truncated",
        why="More than a tolerable share of prompts is longer than the encoder's token limit.",
        fix="--candidate 'NAME?max_tokens=N' reads more tokens; or shorten the prompts.",
    ),
    "SK0305": Code(
        title="a head where the base model is needed",
        why="The model ends in a head (CausalLM, WithProjection): its first output is logits or one pooled vector, "
        "not token embeddings.",
        fix="Load the base class (for example Gemma2Model, CLIPTextModel); `path:` and `hub:` do it by themselves.",
    ),
    "SK0321": Code(
        title="embeddings differ from one encoding to the next",
        why="The encoder is in training mode (dropout), so cached and fresh embeddings are not the same.",
        fix="Call eval() on the encoder.",
    ),
    "SK0322": Code(
        title="prompts embedded as nothing",
        why="Some prompts give zeros or the null embedding: a NaN was replaced, or a caption was dropped, silently.",
        fix="Run the encoder in fp32; find the prompts and encode them alone.",
    ),
    "SK0323": Code(
        title="the mask keeps padding",
        why="Every token counts as a word, however short the prompt: the core attends to padding.",
        fix="Hand on the tokenizer's attention mask.",
    ),
    "SK0324": Code(
        title="the mask points at padding",
        why="The words lie where the mask says padding: tokens are padded left and the mask right, or the other "
        "way round.",
        fix="Pad right (Gemma's tokenizer pads left by default), or use the tokenizer's own mask.",
    ),
    "SK0325": Code(
        title="the instruction has no effect",
        why="The record states an instruction, but prompts are embedded the same without it.",
        fix="Put the instruction before every prompt but the null one, and keep it from being cut off.",
    ),
    "SK0326": Code(
        title="the null embedding is another encoder's",
        why="Guidance subtracts a prediction for an embedding that this encoder never gives.",
        fix="Recompute it with the new encoder: empty prompt, no instruction.",
    ),
    "SK0327": Code(
        title="all tokens of a prompt are the same",
        why="A pooled vector stands in the place of token embeddings.",
        fix="Take the last hidden state, not the pooled output.",
    ),
    "SK0328": Code(
        title="only the first word is read",
        why="A prompt's embedding does not change with its last word: the encoder reads one token, or the kept tokens "
        "are those of the first word.",
        fix="Search for a slice of the hidden states ([:, :1], a pooled vector) and for max_length of the tokenizer.",
    ),
    "SK0329": Code(
        title="the encoder says no more than random weights",
        why="Which words the encoder finds alike agrees with the base's encoder no better than its own class with "
        "random weights does: its weights are not trained or not loaded, or its tokenizer's numbers name other "
        "words.",
        fix="Load the trained weights (a warning about newly initialised weights names those that are missing) with "
        "the tokenizer that they were trained with.",
    ),
    "SK0306": Code(
        title="a reading policy that the encoder cannot follow",
        why="The layer, the number of tokens or another field of its record does not fit this model.",
        fix="NAME?key=value changes a record, for example path:DIR?max_tokens=300&layer=mean; fields: max_tokens, "
        "instruction (`sana` is Sana's own), lower_case, and for transformers models select (first, first-last), layer "
        "(last, mean, an index) and attend_padding.",
    ),
    "SK0307": Code(
        title="prompts are not a list of texts",
        why="Prompts are encoded as a batch, one text each; a single text would be read as one prompt per character.",
        fix='Put a single prompt into a list: ["red apple"].',
    ),
    # 04: data
    "SK0401": Code(
        title="no images",
        why="The folder or manifest names no readable image.",
        fix="Point --data at a folder of images with .txt captions, or a CSV/JSONL manifest with "
        "`image` and `caption` columns.",
    ),
    "SK0402": Code(
        title="too many images set aside",
        why="More images than tolerated are corrupt, too large or without a caption.",
        fix="The ledger names each with the reason. Repair them, or raise the share: `--set data.max_set_aside=SHARE`, "
        "or `sanakit encode --max-set-aside SHARE`.",
    ),
    "SK0403": Code(
        title="too few images",
        why="Statistics and splits need more images than the data set holds.",
        fix="Add images; the message says how many are needed.",
    ),
    "SK0404": Code(
        title="cache does not match",
        why="The cache was written with other weights, preprocessing or images.",
        fix="Delete the named folder, or point SANAKIT_CACHE elsewhere; it is rebuilt.",
    ),
    "SK0405": Code(
        title="much of the images is cut off or padded",
        why="Images that are no squares are cropped to their middle, or padded with white: what is cut is never "
        "learnt, and white borders are.",
        fix="Set data.fit to the other of crop and pad, or data.aspect_buckets=true, which trains on whole images; of "
        "`sanakit encode` the options are `--fit` and `--aspect-buckets`.",
    ),
    "SK0410": Code(
        title="nothing is removed without a yes",
        why="`sanakit cache prune` asks before it removes anything, and there is no terminal to ask on.",
        fix="Check the list, then repeat the command with --yes.",
    ),
    "SK0411": Code(
        title="a cache entry cannot be removed",
        why="The system refuses to remove it, or something that is not ours was put into it meanwhile.",
        fix="Open the folder that the message names, and remove it by hand.",
        exit_code=ExitCode.ENVIRONMENT,
    ),
    # 05: training
    "SK0501": Code(
        title="loss is not finite",
        why="A loss or gradient became NaN or Inf; the step was not taken.",
        fix="Lower train.learning_rate, or check the latents' scale (SK0203).",
    ),
    "SK0502": Code(
        title="training makes no progress",
        why="The held-out loss after training is not below the one before it.",
        fix="Try another learning rate or strategy; readings.jsonl shows the curve by sigma.",
    ),
    "SK0503": Code(
        title="the prompt has too little effect",
        why="The prompt lowers the held-out loss by too small a share of what it lowers the base's (prompt gain), or "
        "the base's own prompts have no effect, so that there is nothing to compare.",
        fix="Check that captions belong to their images, then the null embedding, the mask and the caption adapter; a "
        "longer race (--budget-steps) tells more.",
    ),
    "SK0504": Code(
        title="no strategy comes near the base",
        why="No strategy reaches the base's one-step quality within the budget, nor is forecast to.",
        fix="Raise --budget-steps, or read the forecast: the swap may need a full retrain.",
    ),
    "SK0505": Code(
        title="cannot resume",
        why="The checkpoint is missing, damaged or of another configuration.",
        fix="--resume never starts anew; --resume DIR names a checkpoint.",
    ),
    "SK0506": Code(
        title="alignment beats nothing",
        why="Closed-form alignment starts no better than naive re-initialisation.",
        fix="Check that both VAEs see the same images in the same order; then train from scratch.",
    ),
    "SK0507": Code(
        title="samples are broken",
        why="Sampled latents are far wider or narrower than those of the data: sampling is not the inverse of "
        "training.",
        fix="Check the sign of the velocity, the sigmas and the timestep scale that the sampler uses; compare the "
        "sample grids: noise means a scale error, grey too little training.",
    ),
    "SK0508": Code(
        title="the wrong parameters moved",
        why="A parameter that is trained stands still, or a frozen one moved: precision, grouping or a wrapper is "
        "at fault.",
        fix="Train in fp32 or autocast bf16 with a larger learning rate; report it where a frozen parameter moved.",
    ),
    "SK0509": Code(
        title="a rank holds the others up",
        why="A rank has not finished a step within train.hang_timeout, so the others wait for it in a collective.",
        fix="Check that rank's host (disk, GPU, network); the same command goes on from the latest checkpoint. "
        "A step that honestly takes longer needs a larger train.hang_timeout.",
        exit_code=ExitCode.ENVIRONMENT,
    ),
    "SK0510": Code(
        title="latents are no more equivariant than before",
        why="Fine-tuning the VAE has not lowered the error between encoding a turned or scaled image and turning or "
        "scaling its latents.",
        fix="Raise vae.equivariance or train.max_steps.",
    ),
    "SK0511": Code(
        title="a monitor stopped the run",
        why="A drift monitor alarmed, and its action is to stop, or to roll back where it could not or had done so "
        "before.",
        fix="readings.jsonl and `sanakit report RUN` show channel, effect, step and likely cause; `--set "
        "monitors.NAME=warn` goes on regardless.",
        exit_code=ExitCode.GATE_FAILED,
    ),
    "SK0512": Code(
        title="every strategy diverged",
        why="The loss of every strategy that trains became NaN or Inf before the end of the race, so none can be "
        "recommended.",
        fix="Lower the learning rates (--set smoke.rates=[0.25,0.0625] or train.learning_rate), train in fp32 or bf16, "
        "or check the latents' scale (SK0203).",
    ),
    "SK0513": Code(
        title="how many steps stage full needs is not known",
        why="train.max_steps is not set, and no race says within which number of steps the base's quality is reached: "
        "none was run, its forecast has no late end, or it lies beyond smoke.horizon.",
        fix="Set a number, `--set train.max_steps=N`, or run a longer race, `--set smoke.budget_steps=N`.",
        exit_code=ExitCode.INCONCLUSIVE,
    ),
    "SK0514": Code(
        title="decoder training has changed the latents",
        why="The encoder gives other latents than before, although only the decoder was to be trained: caches and "
        "cores of the VAE no longer fit it.",
        fix="Report it with the VAE's class; until then keep the VAE as it was.",
    ),
    "SK0515": Code(
        title="reconstructions are perceptually no nearer than before",
        why="Training the decoder has not lowered the perceptual distance between held-out images and their "
        "reconstructions.",
        fix="Raise vae.perceptual or train.max_steps, or lower train.learning_rate.",
    ),
    "SK0516": Code(
        title="a rank ended before the others",
        why="One of the ranks met an error or was killed, so that the others could not go on.",
        fix="Mend what the message names; the same command then goes on from what was saved, on any number of ranks.",
        exit_code=ExitCode.ENVIRONMENT,
    ),
    "SK0130": Code(
        title="a run folder that is not there",
        why="The folder holds no config.yaml of a run, and no component is named: there is nothing to go on with.",
        fix="Name a folder under runs/, or a candidate: --vae or --text-encoder.",
    ),
    "SK0517": Code(
        title="the text encoder is worth no more than random weights",
        why="After the same steps the candidate's class with random weights has nearly the candidate's held-out loss: "
        "its embeddings tell prompts apart, but say nothing that the core can use.",
        fix="Check that the trained weights are loaded and that the tokenizer is theirs; then a longer race "
        "(--budget-steps).",
    ),
    "SK0520": Code(
        title="the base does not denoise its own latents",
        why="The base does no better than a map that knows nothing but the latents' power: another VAE of the same "
        "shape, another scale, or untrained weights.",
        fix="Name the VAE and the scaling factor that the base was trained with in its card.",
    ),
    "SK0521": Code(
        title="the base was trained with another attention mask",
        why="The base's loss is lower with every token visible than with the mask.",
        fix="Use the mask, or none, as in the base's training: both in training and in sampling.",
    ),
    "SK0522": Code(
        title="images repeat within an epoch",
        why="Steps draw the same images again before the others had their turn.",
        fix="The order must depend on the step and the epoch; restore both when resuming.",
    ),
    "SK0523": Code(
        title="training and sampling use different flow shifts",
        why="The sigmas that training draws are shifted otherwise than the sampler's.",
        fix="State flow_shift once, in the card, and let both read it.",
    ),
    "SK0524": Code(
        title="the moving average stands still",
        why="The average of the weights does not follow them, so what is saved is the start.",
        fix="Update the average after every optimiser step, and restore it when resuming.",
    ),
    # 06: other people's formats, in and out
    "SK0601": Code(
        title="a pickle is not read without leave",
        why="A .pth file is a pickle; sanakit reads tensors alone from it (weights_only), and only where you say so.",
        fix="--allow-pickle, for a file whose origin you trust; it is converted to safetensors once.",
    ),
    "SK0602": Code(
        title="not a native Sana checkpoint",
        why="The file lacks tensors of a Sana transformer, has others, or its attention heads cannot be told.",
        fix="State vae, text_encoder, image_size, flow_shift and config in a .json of the same name beside it.",
    ),
    "SK0603": Code(
        title="not a pipeline folder that sanakit can read",
        why="model_index.json or a subfolder is missing, or names a class that is no Sana pipeline.",
        fix="Point `path:` at a folder that SanaPipeline.save_pretrained or `sanakit export` wrote.",
    ),
    "SK0604": Code(
        title="a component cannot be exported",
        why="Its model or tokenizer has no format on disk that a reader could load again.",
        fix="Use the variant of the component that is a diffusers or transformers class.",
    ),
    "SK0605": Code(
        title="nothing to export",
        why="The run folder holds no model: stage full writes it.",
        fix="sanakit validate --stage full --run-dir DIR",
    ),
    "SK0606": Code(
        title="the export folder is not empty",
        why="Files of another model would stay between those of this one.",
        fix="Name a new --out, or empty the folder first.",
    ),
    # 07: drift
    "SK0701": Code(
        title="nothing to compare",
        why="The file or folder holds no `latents`, `raw_latents`, `embeddings` or `embeds`, is damaged, or is no "
        "cache, run or snapshot.",
        fix="Name a .safetensors file with `latents` (N, C, H, W) or `embeddings` (N, L, D) and `attention_mask` "
        "(N, L).",
    ),
    "SK0702": Code(
        title="the two sides cannot be compared",
        why="Their fingerprints differ in kind, channels, size or normalisation: a distance between them means "
        "nothing.",
        fix="Encode both sides with the same component, size and normalisation.",
    ),
    "SK0703": Code(
        title="too few samples for a statistic",
        why="A covariance of d dimensions needs at least 10 d rows a side; with fewer it is noise.",
        fix="Bring more samples, or fewer dimensions (PCA).",
    ),
    "SK0704": Code(
        title="empty side",
        why="A file holds no image or prompt.",
        fix="Encode at least as many samples as the message says.",
    ),
    # 09: environment
    "SK0901": Code(
        title="a package is missing",
        why="This component comes in a package that is not installed.",
        fix="pip install the package that the message names; 'sanakit[demo]' has those of the embedded world.",
        exit_code=ExitCode.ENVIRONMENT,
    ),
    "SK0902": Code(
        title="the hub cannot be reached",
        why="There is no network, the repository is gated, or it does not exist.",
        fix="Check the name and `hf auth login`; or download it elsewhere and use `path:DIR`.",
        exit_code=ExitCode.ENVIRONMENT,
    ),
    "SK0903": Code(
        title="not enough disk",
        why="The run folder or the cache cannot be written.",
        fix="Free space, or set SANAKIT_CACHE and --run-dir to another disk.",
        exit_code=ExitCode.ENVIRONMENT,
    ),
    "SK0905": Code(
        title="the device is not there",
        why="PyTorch finds no such device: another build of PyTorch, no driver, or a number beyond the devices of this "
        "machine.",
        fix="Use --device auto or cpu, or install the PyTorch build for it; `sanakit doctor` says what is found.",
        exit_code=ExitCode.ENVIRONMENT,
    ),
    "SK0906": Code(
        title="the device's memory is too small",
        why="One image or prompt alone needs more memory than the device has free.",
        fix="End what else uses the device, take a base of smaller images, or use --device cpu.",
        exit_code=ExitCode.ENVIRONMENT,
    ),
    "SK0907": Code(
        title="a run does not fit the device",
        why="What one phase holds on the device at the same time (weights, gradients, moments, averages, activations) "
        "is more than the device has room for; 15% are left to the driver, the kernels and the allocator.",
        fix="Take an option that the message names, a smaller train.batch_size, a base of smaller images, more ranks "
        "with train.parallel=fsdp, or a larger device.",
        exit_code=ExitCode.ENVIRONMENT,
    ),
    "SK0999": Code(
        title="an unexpected error",
        why="sanakit, or a package that it calls, raised an error that nobody foresaw. Nothing is said about the "
        "model: exit code 5 is never a verdict.",
        fix="Report the message and the traceback file that it names; remove from both what is private.",
        exit_code=ExitCode.ERROR,
    ),
}


class SanakitError(Exception):
    """A failure that a user can mend.

    `code` is a key of `CODES`; `found` says what was found and what was expected, with numbers; `cause` and
    `fix` default to the catalogue's.
    """

    def __init__(self, code: str, found: str, *, cause: str | None = None, fix: str | None = None) -> None:
        entry = CODES[code]
        self.code = code
        self.found = found
        self.cause = cause or entry.why
        self.fix = fix or entry.fix
        self.exit_code = entry.exit_code
        super().__init__(f"error[{code}]: {found}\n  cause: {self.cause}\n  fix:   {self.fix}")


def warning_text(code: str, found: str) -> str:
    """The one-line form of a catalogue entry, for `warnings.warn`."""
    return f"{code}: {found}. {CODES[code].fix}"


NO_MEMORY = re.compile(r"can(no|')t allocate memory|out of memory|_ALLOC_FAILED|unable to allocate", re.IGNORECASE)


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error says that the machine's memory or the device's is full."""
    if error is None or isinstance(error, SanakitError):
        return False
    full = isinstance(error, OSError) and error.errno == errno.ENOMEM
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return full or is_memory or bool(NO_MEMORY.search(str(error)))


def did_you_mean(name: str, known: list[str]) -> str:
    """A suffix like ` (did you mean dc-f16c32?)`, or nothing."""
    import difflib

    close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
