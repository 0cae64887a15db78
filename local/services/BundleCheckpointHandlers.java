package org.apache.beam.runners.fnexecution.control;

import java.util.Collections;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.DelayedBundleApplication;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.ProcessBundleResponse;
import org.apache.beam.runners.core.StateInternalsFactory;
import org.apache.beam.runners.core.StateNamespace;
import org.apache.beam.runners.core.StateNamespaces;
import org.apache.beam.runners.core.StateTags;
import org.apache.beam.runners.core.TimerInternalsFactory;
import org.apache.beam.sdk.coders.Coder;
import org.apache.beam.sdk.state.TimeDomain;
import org.apache.beam.sdk.transforms.windowing.BoundedWindow;
import org.apache.beam.sdk.util.CoderUtils;
import org.apache.beam.sdk.util.WindowedValue;
import org.joda.time.Duration;
import org.joda.time.Instant;

/**
 * Stands before Beam's class of this name, whose residuals (what a splittable DoFn has put off) each get a state of a
 * new name that nothing ever removes: a TaskManager's memory and each checkpoint grow with every batch, until Flink
 * refuses the 32,768th state (https://github.com/apache/beam/issues/27648, mended after 2.62). Here the names come from
 * a ring. That is enough where a key has few residuals at a time; a shard of our source has one. Goes when
 * flink-pom.xml names a release with the mend.
 */
public class BundleCheckpointHandlers {
  public static class StateAndTimerBundleCheckpointHandler<T> implements BundleCheckpointHandler {
    public static final String SDF_PREFIX = "sdf_checkpoint";
    private static final int RING = 16;

    private final TimerInternalsFactory<T> timers;
    private final StateInternalsFactory<T> states;
    private final Coder<WindowedValue<T>> residualCoder;
    private final Coder<BoundedWindow> windowCoder;
    private int next = 0;

    @SuppressWarnings({"unchecked", "rawtypes"})
    public StateAndTimerBundleCheckpointHandler(
        TimerInternalsFactory<T> timers,
        StateInternalsFactory<T> states,
        Coder<WindowedValue<T>> residualCoder,
        Coder windowCoder) {
      this.timers = timers;
      this.states = states;
      this.residualCoder = residualCoder;
      this.windowCoder = windowCoder;
    }

    public static boolean isSdfTimer(String timerId) {
      return timerId.startsWith(SDF_PREFIX);
    }

    @Override
    public void onCheckpoint(ProcessBundleResponse response) {
      for (DelayedBundleApplication residual : response.getResidualRootsList()) {
        if (!residual.hasApplication()) {
          continue;
        }
        try {
          putOff(residual, SDF_PREFIX + ":" + next);
        } catch (Exception e) {
          throw new RuntimeException("Failed to set timer/state for the residual", e);
        }
        next = (next + 1) % RING;
      }
    }

    private void putOff(DelayedBundleApplication residual, String name) throws Exception {
      WindowedValue<T> value =
          CoderUtils.decodeFromByteArray(residualCoder, residual.getApplication().getElement().toByteArray());
      Instant due = Instant.now();
      if (residual.hasRequestedTimeDelay()) {
        due = due.plus(Duration.millis(residual.getRequestedTimeDelay().getSeconds() * 1000L));
      }
      long held =
          residual.getApplication().getOutputWatermarksMap().values().stream()
              .mapToLong(watermark -> watermark.getSeconds() * 1000L)
              .min()
              .orElse(BoundedWindow.TIMESTAMP_MIN_VALUE.getMillis());
      for (BoundedWindow window : value.getWindows()) {
        StateNamespace namespace = StateNamespaces.window(windowCoder, window);
        timers
            .timerInternalsForKey(value.getValue())
            .setTimer(namespace, name, "", due, Instant.ofEpochMilli(held), TimeDomain.PROCESSING_TIME);
        states
            .stateInternalsForKey(value.getValue())
            .state(namespace, StateTags.value(name, residualCoder))
            .write(
                WindowedValue.of(
                    value.getValue(), value.getTimestamp(), Collections.singletonList(window), value.getPane()));
      }
    }
  }
}
