import java.util.List;
import org.apache.beam.sdk.util.construction.resources.PipelineResourcesDetector;

/** Keeps the job server from uploading its class path with every job: the cluster was started with the same jars. */
public final class NothingToStage implements PipelineResourcesDetector.Factory {
  public static PipelineResourcesDetector.Factory create() {
    return new NothingToStage();
  }

  @Override
  public PipelineResourcesDetector getPipelineResourcesDetector() {
    return classLoader -> List.of();
  }
}
