// Mixture of experts (arXiv 2101.03961, 2401.06066): a router gives each token to a few of many
// small feed-forwards, or each of these takes tokens (arXiv 2202.09368); shared experts, balance by
// a loss or by a correction of the choice.
#include <numeric>
#include <utility>

#include "layers/layers.h"
#include "layers/toolbox.h"
#include "ops/experts.h"
#include "ops/linear.h"
#include "ops/linear_maps.h"
#include "ops/pointwise.h"
#include "tensor/sequence_shards.h"

namespace pronghorn {
namespace {

constexpr double kMostScale = 1e4, kMostLoss = 1e3, kMostClamp = 1e6;
constexpr const char* kClamped = "clamped_swiglu";
constexpr const char* kByExperts = "expert";

struct MoeConfig {
  int64_t experts = 0, size = 0, shared_size = 0, latent_size = 0;
  std::string activation;
  double clamp = 0;
  bool gated = true, bias = false, router_bias = false, correction = false, shared_gate = false;
  bool by_experts = false;
  RouterOptions router;
  double correction_step = 0, balance_loss = 0, z_loss = 0;

  void fields(ConfigFields& f, const LayerContext&) {
    f.integer("experts", experts, kRequired, 1, limits::kExperts, "experts");
    f.integer("top_k", router.top_k, kRequired, 1, experts,
              "experts that a token is given to; with `choice` `\"expert\"` on average");
    f.integer("size", size, kRequired, 1, limits::kWidth, "width inside an expert");
    f.one_of("activation", activation,
             {"silu", "gelu", "gelu_tanh", "relu", "relu2", "swoosh_r", "swoosh_l", kClamped},
             "silu",
             "of the gate: `\"silu\"`, `\"gelu\"`, `\"gelu_tanh\"`, `\"relu\"`, `\"relu2\"`, "
             "`\"swoosh_r\"`, `\"swoosh_l\"`, or "
             "`\"clamped_swiglu\"` of gate and values");
    f.boolean("gated", gated, true,
              "all experts have a gate; else they are two layers with the activation between");
    f.check(gated || activation != kClamped, "activation", "\"{}\" is of a gate", kClamped);
    f.number("clamp", clamp, 7.0, 0, kMostClamp, "limit of `\"clamped_swiglu\"`");
    f.boolean("bias", bias, false, "on all projections of experts");
    f.integer("latent_size", latent_size, 0, 0, limits::kWidth,
              "width that a token is projected to for the experts that are chosen, and back from; "
              "0: they are given the token as it is");
    read_router(f);
    f.integer("shared_size", shared_size, 0, 0, limits::kWidth,
              "width inside an expert that every token is given to; 0: none");
    f.boolean("shared_gate", shared_gate, false,
              "what the shared expert gives is multiplied by sigmoid(w x)");
    f.number("balance_loss", balance_loss, 0.0, 0, kMostLoss,
             "weight of the balance loss in training");
    f.check(balance_loss == 0 || !by_experts, "balance_loss",
            "has no use: experts choose equal loads");
    f.number("z_loss", z_loss, 0.0, 0, kMostLoss, "weight of the router's z-loss in training");
  }

 private:
  void read_router(ConfigFields& f) {
    std::string choice, scores;
    double scale = 1;
    router.experts = experts;
    f.one_of(
        "choice", choice, {"token", kByExperts}, "token",
        "`\"token\"`: each token is given to its best experts; `\"expert\"`: each expert takes "
        "its best tokens in training, and in inference those whose score passes its threshold");
    by_experts = choice == kByExperts;
    f.one_of("scores", scores, {"softmax", "sigmoid"}, "softmax",
             "`\"softmax\"` or `\"sigmoid\"` of the router's logits");
    router.sigmoid = scores == "sigmoid";
    f.boolean(
        "normalize", router.normalize, {!by_experts, "true; with `choice` `\"expert\"` false"},
        "the chosen scores are divided by their sum; with softmax: a softmax over the chosen");
    f.number("least_sum", router.least_sum, 1e-20, 0, 1,
             "added to the sum of sigmoids that they are divided by");
    f.number("scale", scale, 1.0, 0, kMostScale, "factor on the weights of the chosen");
    router.scale = static_cast<float>(scale);
    f.boolean("router_bias", router_bias, false, "on the router's logits");
    f.boolean("correction", correction, false,
              "a number for each expert is added to its score where experts are chosen; training "
              "moves it towards an equal load");
    f.check(!correction || !by_experts, "correction", "has no use: experts choose equal loads");
    f.number("correction_step", correction_step, 0.001, 0, 1, "how far it moves in a step");
    f.integer("groups", router.groups, 1, 1, experts, "equal groups of experts");
    f.check(router.groups == 1 || !by_experts, "groups", "are for tokens that choose");
    f.check(experts % router.groups == 0, "groups", "{} does not divide experts {}", router.groups,
            experts);
    f.integer("top_groups", router.top_groups, {router.groups, "`groups`"}, 1, router.groups,
              "groups that experts are chosen from");
    f.check(router.top_k <= router.top_groups * (experts / router.groups), "top_groups",
            "{} groups of {} have fewer experts than top_k {}", router.top_groups,
            experts / router.groups, router.top_k);
  }
};

// The networks of the experts, matrix by matrix.
struct Projections {
  std::vector<Weight> weights;
  std::vector<Tensor> biases;  // one each, or none

  Tensor operator()(const Context& context, const Tensor& x,
                    std::span<const int64_t> begins) const {
    return grouped_linear(context, x, weights, biases, begins);
  }
};

class MixtureOfExperts final : public FeedForward {
 public:
  using Config = MoeConfig;

  MixtureOfExperts(const Config& config, const LayerContext& context, const ParameterScope& scope,
                   const StateScope&)
      : router_options_(config.router),
        layer_(context.layer),
        activation_(activation_named(config.activation)),
        gated_(config.gated),
        clamped_(config.activation == kClamped),
        clamp_(static_cast<float>(config.clamp)),
        balance_loss_(config.balance_loss),
        z_loss_(config.z_loss) {
    make_router(config, context, scope);
    make_experts(config, context, scope);
    if (config.shared_size > 0) make_shared(config, context, scope);
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    Context whole = context;
    whole.precision = Precision::f32;
    const Tensor logits = linear(whole, x, router_, router_bias_);
    const Routing routing = routed(input, logits);
    const ExpertRows sorted =
        sort_by_expert(routing.experts, router_options_.experts, routing.weights.columns());
    hand_out(input, logits, routing, sorted);

    const Tensor given = latent_in_.defined() ? linear(context, x, latent_in_) : x;
    const Tensor rows = embedding(context, given, sorted.rows);
    const Tensor gate = gated_ ? gate_(context, rows, sorted.begins) : Tensor();
    const Tensor inside = inner(context, gate, up_(context, rows, sorted.begins));
    Tensor y = combine_rows(context, down_(context, inside, sorted.begins), routing.weights,
                            sorted.places);
    if (latent_out_.defined()) y = linear(context, y, latent_out_);
    return shared_up_proj_.defined() ? add(context, y, shared(whole, context, x)) : y;
  }

  double sequence_cost(double) const override { return 2.0 * static_cast<double>(router_.size()); }

 private:
  void make_router(const Config& config, const LayerContext& context, const ParameterScope& scope) {
    const Initializer in = projection_initializer(context), zero = initializers::constant(0);
    // A tensor and no matrix: a choice must not depend on how weights are stored or products
    // rounded.
    router_ =
        Weight(scope.tensor("gate.weight", {config.experts, context.hidden_size}, in, Decay::yes));
    if (config.router_bias) router_bias_ = scope.tensor("gate.bias", {config.experts}, zero);
    if (config.by_experts) threshold_ = scope.average("gate.threshold", {config.experts});
    if (config.correction) {
      correction_ =
          scope.counter("gate.e_score_correction_bias", {config.experts}, config.correction_step);
    }
  }

  void make_experts(const Config& config, const LayerContext& context,
                    const ParameterScope& scope) {
    int64_t d = context.hidden_size;
    const int64_t size = config.size;
    const Initializer in = projection_initializer(context), zero = initializers::constant(0);
    const Initializer back = residual_initializer(context);
    if (config.latent_size > 0) {
      latent_in_ = scope.matrix("latent_in_proj.weight", config.latent_size, d, in);
      latent_out_ = scope.matrix("latent_out_proj.weight", d, config.latent_size, back);
      d = config.latent_size;
    }
    const double share =
        static_cast<double>(config.router.top_k) / static_cast<double>(config.experts);
    for (int64_t e = 0; e < config.experts; ++e) {
      const ParameterScope expert = scope.child("experts").child(std::to_string(e));
      const auto add = [&](Projections& to, std::string_view name, int64_t out, int64_t from,
                           const Initializer& initializer) {
        const ParameterScope projection = expert.child(name);
        to.weights.push_back(projection.matrix("weight", out, from, initializer, share));
        if (config.bias) to.biases.push_back(projection.tensor("bias", {out}, zero));
      };
      if (gated_) add(gate_, "gate_proj", size, d, in);
      add(up_, "up_proj", size, d, in);
      add(down_, "down_proj", d, size, latent_out_.defined() ? in : back);
    }
  }

  void make_shared(const Config& config, const LayerContext& context, const ParameterScope& scope) {
    const int64_t d = context.hidden_size;
    const Initializer in = projection_initializer(context);
    const ParameterScope shared = scope.child("shared_expert");
    if (gated_) shared_gate_proj_ = shared.matrix("gate_proj.weight", config.shared_size, d, in);
    shared_up_proj_ = shared.matrix("up_proj.weight", config.shared_size, d, in);
    shared_down_proj_ =
        shared.matrix("down_proj.weight", d, config.shared_size, residual_initializer(context));
    if (config.shared_gate) {
      shared_gate_ = Weight(scope.tensor("shared_expert_gate.weight", {1, d}, in, Decay::yes));
    }
  }

  Routing routed(const LayerInput& input, const Tensor& logits) const {
    if (!threshold_.defined()) return route(input.context, logits, correction_, router_options_);
    require_whole(input.batch, "experts that choose rows");
    return route_by_experts(input.context, logits, threshold_, std::ssize(input.batch.segments()),
                            router_options_);
  }

  // What is between the two layers of an expert. gate: undefined in experts that have none.
  Tensor inner(const Context& context, const Tensor& gate, const Tensor& up) const {
    if (!gated_) return activate(context, up, activation_);
    return clamped_ ? clamped_swiglu(context, gate, up, clamp_)
                    : gated(context, gate, up, activation_);
  }

  Tensor shared(const Context& whole, const Context& context, const Tensor& x) const {
    const auto [gate, up] = linear_maps(context, x, {{&shared_gate_proj_}, {&shared_up_proj_}});
    const Tensor inside = inner(context, gate, up);
    const Tensor y = linear(context, inside, shared_down_proj_);
    if (!shared_gate_.defined()) return y;
    std::vector<int32_t> places(static_cast<size_t>(x.rows()));
    std::iota(places.begin(), places.end(), 0);
    return combine_rows(context, y, sigmoid(context, linear(whole, x, shared_gate_)), places);
  }

  void hand_out(const LayerInput& input, const Tensor& logits, const Routing& routing,
                const ExpertRows& sorted) const {
    const Context& context = input.context;
    if (input.carry.wants_loads()) input.carry.add_load({layer_, sorted.counts()});
    if (!input.carry.wants_losses()) return;
    if (balance_loss_ > 0) {
      input.carry.add_loss("balance", balance_loss(context, logits, routing, router_options_),
                           balance_loss_);
    }
    if (z_loss_ > 0) input.carry.add_loss("router_z", router_z_loss(context, logits), z_loss_);
  }

  RouterOptions router_options_;
  int64_t layer_;
  Activation activation_;
  bool gated_, clamped_;
  float clamp_;
  double balance_loss_, z_loss_;
  Weight router_, shared_gate_;
  Tensor router_bias_, correction_, threshold_;
  Projections gate_, up_, down_;
  Weight latent_in_, latent_out_;
  Weight shared_gate_proj_, shared_up_proj_, shared_down_proj_;
};

}  // namespace

FeedForwardType moe_type() {
  return feed_forward_type<MixtureOfExperts>(
      "moe", "mixture of experts: each token is given to a few of many feed-forwards",
      "arXiv 2101.03961, 2401.06066", R"({"type": "moe", "experts": 6, "top_k": 2, "size": 20})");
}

}  // namespace pronghorn
